"""The report of a run: one HTML file to open the morning after, and the same in the terminal."""

from mm_autofocus.report.data import FieldRecord, MethodSummary, ReportData, summarise, wilson
from mm_autofocus.report.html import write_report
from mm_autofocus.report.text import print_summary

__all__ = [
    "FieldRecord",
    "MethodSummary",
    "ReportData",
    "print_summary",
    "summarise",
    "wilson",
    "write_report",
]
