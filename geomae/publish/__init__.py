"""A finished run -> a folder for the Hub: the model, its card, its numbers and pictures; and its upload.

    python -m geomae.publish outputs/RUN [--repo_id OWNER/NAME] [--dry_run]

Pictures need the extra `geomae[report]` (matplotlib, cartopy). The licence, the citation and the card's template are of
the checkout, which a wheel does not hold.
"""

__all__ = ["card", "eval_results", "folder", "shipped", "upload"]
