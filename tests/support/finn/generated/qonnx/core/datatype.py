"""The few data types that the tests need: INT1 to INT64, UINT1 to UINT64, BIPOLAR."""


class Integer:
    """One integer type."""

    def __init__(self, name):
        self.name = name
        self._signed = not name.startswith("U")
        self._bits = 1 if name == "BIPOLAR" else int(name.lstrip("UINT"))

    def bitwidth(self):
        return self._bits

    def signed(self):
        return self._signed

    def min(self):
        return -1 if self.name == "BIPOLAR" else -(2 ** (self._bits - 1)) if self._signed else 0

    def max(self):
        return 1 if self.name == "BIPOLAR" else 2 ** (self._bits - self._signed) - 1

    def is_integer(self):
        return True

    def is_fixed_point(self):
        return False


class _Types(type):
    def __getitem__(cls, name):
        return Integer(name)


class DataType(metaclass=_Types):
    """``DataType["INT8"]``."""
