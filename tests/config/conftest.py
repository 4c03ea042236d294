from small_conf import conf  # noqa: F401  (a fixture for all tests of this folder)
