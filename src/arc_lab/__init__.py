"""What a person runs at home: dry runs, scores, benchmarks. Imports `arc_ttt`; never shipped to Kaggle."""
