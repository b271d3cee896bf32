"""The report of a finished campaign: one HTML page, Markdown, LaTeX tables and PNG figures. Importing it does not import torch."""

from robustkd.reporting.build import ReportFiles, write_report
from robustkd.reporting.gallery import GalleryItem, Item
from robustkd.reporting.samples import AttackedSamples, SampleEvidence, class_table
from robustkd.reporting.summary import DefenseSummary, summary_rows
from robustkd.reporting.transcripts import PromptItem

__all__ = [
    "AttackedSamples",
    "DefenseSummary",
    "GalleryItem",
    "Item",
    "PromptItem",
    "ReportFiles",
    "SampleEvidence",
    "class_table",
    "summary_rows",
    "write_report",
]
