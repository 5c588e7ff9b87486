"""Numbers and logs in, tables, figures and pages out.

Figures need the extra `geomae[report]` (matplotlib, cartopy); `geomae.reporting.readme` does not.
"""

__all__ = ["comparison", "maps", "page", "plots", "readme", "records", "report", "results_section"]
