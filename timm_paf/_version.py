"""The version, readable without importing torch."""
#: Version of the package.
__version__ = '0.1.0'
