"""Sources of images, long-tail sampling, augmentation and batches."""
