"""Campaigns in MLflow. The driver is the only writer; importing this imports neither MLflow nor torch."""

from robustkd.tracking.location import UiCommand, tracking_uri, ui_command
from robustkd.tracking.mlflow_tracker import MlflowTracker, TrackingError, rebuild
from robustkd.tracking.records import TrackedCampaign

__all__ = ["MlflowTracker", "TrackedCampaign", "TrackingError", "UiCommand", "rebuild", "tracking_uri", "ui_command"]
