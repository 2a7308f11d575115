"""Programs that use crates of others for hot patching, and know nothing of this one."""
