"""`recipe report`: bundles on one page that needs nothing else, and no network."""
