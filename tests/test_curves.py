"""What the pictures of results show."""
import pytest
from matplotlib.figure import Figure

from lcq_mmdet.report import curves
from lcq_mmdet.studies.rows import Row


@pytest.fixture
def drawn(monkeypatch):
    """Figures that were drawn, in place of files."""
    figures = []

    class Kept(Figure):

        def savefig(self, path, **kwargs):
            figures.append(self)

    monkeypatch.setattr(curves, 'Figure', Kept)
    return figures


def record(variant='float', bits=(32, 32), ap=0.5, **seed):
    row = Row(variant, bits, **seed)
    return dict(row.label(), metrics=dict(mAP=ap),
                cost=dict(bytes=1e5 * bits[0]))


def test_inputs_of_other_bits_are_a_curve_of_their_own(drawn):
    curves.plot_map([
        record(ap=0.6), record('lcq', (4, 4), 0.5, seed=0),
        record('lcq', (2, 2), 0.3, seed=0),
        record('lcq', (4, 8), 0.55, seed=0),
        record('lcq', (2, 8), 0.4, seed=0),
        record('lsq', (2, 2), 0.2, seed=0)
    ], 'map.png')
    axes = drawn[0].axes[0]
    points = {bars.get_label(): (bars[0].get_xdata().tolist(),
                                 bars[0].get_ydata().tolist())
              for bars in axes.containers}
    assert points == {
        'lcq, fine-tuned': ([2, 4], [0.3, 0.5]),
        'lcq, fine-tuned, inputs 8 bits': ([2, 4], [0.4, 0.55]),
        'lsq, fine-tuned': ([2], [0.2]),
    }
    colors = {bars[0].get_color() for bars in axes.containers}
    assert len(colors) == 3
