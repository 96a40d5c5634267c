from hypothesis import settings

settings.register_profile("gem", deadline=None, max_examples=60)  # a busy machine is no failure
settings.load_profile("gem")
