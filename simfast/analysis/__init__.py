"""What a run, or a set of runs, can tell: ablation tables, and diagnosis of matching and losses."""
