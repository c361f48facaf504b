"""The files this version was released with: profiles of the context models, language models."""

# Profiles that frames can name; number: (name, leading bytes of the SHA-256 of its file).
PROFILES: dict[int, tuple[str, str]] = {
    1: ("fast-1", "bfcf8341abb4f9d1893b"),  # of level 1 before number 3
    2: ("strong", "5ac41f437e8e09d4eeb6"),
    3: ("fast", "0df3ac80660ed519597f"),
}

# What imported models begin with unless told otherwise: profile `lm-strong`, learned beside SmolLM2-135M.
IMPORTED_PROFILE = "imported.lmp"
