"""Many builds: what a zoo.yaml asks for, its cells on a cluster of Dask, their results in a store as one table."""
