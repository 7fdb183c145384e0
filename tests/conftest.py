"""Settings that hold for every test."""

import hypothesis

# Two test processes share two cores whose speed varies fourfold; a deadline would measure the machine.
hypothesis.settings.register_profile("strop", deadline=None)
hypothesis.settings.load_profile("strop")
