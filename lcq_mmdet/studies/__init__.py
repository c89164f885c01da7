"""Many trainings and measurements that make one report."""
