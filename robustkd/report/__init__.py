"""The report of a finished campaign: one HTML page, Markdown and PNG figures. Importing it does not import torch."""

from robustkd.report.build import ReportFiles, write_report
from robustkd.report.gallery import GalleryItem
from robustkd.report.summary import DefenseSummary, summary_rows

__all__ = ["DefenseSummary", "GalleryItem", "ReportFiles", "summary_rows", "write_report"]
