"""The data sets of conf/data."""
