"""What watches a training run: progress, throughput, moving averages, early stopping, non-finite losses."""
