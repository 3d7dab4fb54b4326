"""Programs that the campaign starts anew, and those that they start, have its narrow networks, too."""

import os

if os.environ.get("SIMFAST_CAMPAIGN") == "narrow":
    from tests.campaign.narrow import narrow

    narrow()
