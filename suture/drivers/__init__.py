"""Drivers: surgeries that go together with a training loop or with state, from end to end. They know passes and backends."""
