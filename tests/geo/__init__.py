"""Tests against rasterio, that is GDAL: `make test-geo`."""
