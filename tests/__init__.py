import pytest

pytest.register_assert_rewrite("hutch.testing")
