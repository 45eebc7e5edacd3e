"""The measurements that are made of each model."""
