import pytest
from rich.table import Table

from lcq_mmdet.report.tables import group_rows, map_table, render


def row(ap=None, name='lcq', bits='4/4', **values):
    result = dict(error='X') if ap is None else dict(
        metrics=dict(mAP=ap, mAP_50=2 * ap, mAP_l=-1.))
    return dict(name=name, bits=bits, **result, **values)


def cost_of(size, bops=4e9, share=0.5):
    return dict(bytes=size, bops=bops, quantized_share=share)


FLOAT = row(0.25, 'float', 'float', cost=cost_of(8e6, 64e9, 0.),
            seconds_per_iter=0.5, peak_memory=10_000_000)


def cells(*rows, brief=False):
    """Read the Markdown table as dictionaries by heading."""
    text = map_table(rows, markdown=True, brief=brief)
    lines = [[cell.strip() for cell in line.strip('|').split('|')]
             for line in text.split('\n') if line]
    return [dict(zip(lines[0], line)) for line in lines[2:]]


def test_rows_that_differ_in_the_seed_are_one_group():
    rows = [row(.1, seed=0), row(.2, bits='2/2'), row(.3, 'uniform'),
            row(.4, seed=1)]
    assert group_rows(rows) == {
        ('lcq', '4/4'): [rows[0], rows[3]],
        ('lcq', '2/2'): [rows[1]],
        ('uniform', '4/4'): [rows[2]],
    }


def test_seeds_become_mean_and_spread():
    _, line = cells(FLOAT, row(0.2), row(0.3), row(0.4))
    assert line['seeds'] == '3'
    assert line['AP'] == '0.300 ± 0.100'
    assert line['AP50'] == '0.600'
    assert line['AP - float'] == '+0.050'


def test_quantized_rows_are_compared_with_the_fine_tuned_float():
    control = [row(0.2, 'float, fine-tuned', 'float', seed=seed)
               for seed in range(2)] + [row(name='float, fine-tuned',
                                            bits='float', seed=2)]
    first, tuned, line = cells(FLOAT, *control, row(0.3))
    heading = 'AP - float, fine-tuned'
    assert first[heading] == tuned[heading] == ''
    assert line[heading] == '+0.100' and line['AP - float'] == '+0.050'
    assert heading not in cells(FLOAT, row(0.3))[1]


def test_cost_stands_beside_the_first_rows():
    quantized = row(0.2, cost=cost_of(2e6), seconds_per_iter=1.25,
                    peak_memory=15_000_000)
    first, line = cells(FLOAT, quantized)
    assert first['MB'] == '8' and line['MB'] == '2 (0.25x)'
    assert first['GBOPs'] == '64' and line['GBOPs'] == '4'
    assert first['MACs quantized'] == '' and line['MACs quantized'] == '50.0%'
    assert first['s/iter'] == '0.5' and line['s/iter'] == '1.25 (2.50x)'
    assert line['MB training'] == '15 (1.50x)'
    assert first['AP - float'] == '' and line['AP - float'] == '-0.050'


def test_failed_rows_are_shown_and_left_out_of_the_mean():
    _, one, none = cells(FLOAT, row(0.3), row(), row(bits='2/2'))
    assert one['seeds'] == '1 of 2' and one['AP'] == '0.300'
    assert none['AP'] == 'failed' and none['bits W/A'] == '2/2'
    assert all(not value for heading, value in none.items()
               if heading not in ('run', 'bits W/A', 'AP'))


def test_failed_first_row_leaves_nothing_to_compare_with():
    first, line = cells(row(name='float'), row(0.3, cost=cost_of(2e6)))
    assert first['AP'] == 'failed'
    assert line['AP'] == '0.300' and line['MB'] == '2'
    assert 'AP - float' not in line


def test_value_that_a_seed_lacks_is_not_averaged():
    _, line = cells(FLOAT, row(0.2, seconds_per_iter=1.), row(0.2))
    assert line['s/iter'] == ''


def test_column_that_no_row_needs_is_left_out():
    line, = cells(row(0.3))
    assert line == {
        'run': 'lcq', 'bits W/A': '4/4', 'AP': '0.300', 'AP50': '0.600',
        'AP75': '-', 'APs': '-', 'APm': '-', 'APl': '-'
    }


def test_brief_table_has_no_details():
    line = row(0.2, cost=cost_of(2e6), seconds_per_iter=1.25)
    assert cells(FLOAT, line)[1].keys() - cells(
        FLOAT, line, brief=True)[1].keys() == {
            'APs', 'APm', 'APl', 'MACs quantized', 's/iter', 'MB training'}


def test_text_is_drawn_within_its_width():
    text = map_table([FLOAT, row(0.2, 'retinanet_r50_fpn_lcq-w4a4-1x_coco')])
    assert max(map(len, text.splitlines())) <= 160
    assert 'retinanet_r50_fpn_lcq-w4a4-1x_coco' in text


@pytest.mark.parametrize('name', ['excluded by [a-c]*', 'run[/bold]', ':car:'])
def test_text_is_taken_as_it_is(name):
    table = Table('run')
    table.add_row(name)
    assert name in render(table)
    assert cells(row(0.3, name))[0]['run'] == name
