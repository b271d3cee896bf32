"""Campaigns in MLflow. The driver is the only writer; importing this imports neither MLflow nor torch."""

from robustkd.tracking.dashboard import UiCommand, ui_command
from robustkd.tracking.location import TrackingError, tracking_uri
from robustkd.tracking.mlflow_tracker import MlflowTracker, rebuild
from robustkd.tracking.records import TrackedCampaign
from robustkd.tracking.registry import promote

__all__ = ["MlflowTracker", "TrackedCampaign", "TrackingError", "UiCommand", "promote", "rebuild", "tracking_uri", "ui_command"]
