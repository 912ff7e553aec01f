"""What accuracy, training dynamics and ablation have in common: they share jobs and a journal."""
