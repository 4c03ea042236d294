"""`sdscratch dashboard`: make the W&B view that conf/dashboard.yaml describes."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from sdscratch.config import plain
from sdscratch.errors import ConfigError
from sdscratch.services import wandb_key

PANEL_KINDS = ("metrics", "pattern", "pictures")


def run(cfg: DictConfig) -> None:
    """Save it as a new view of the project, and say where it is. Raises ConfigError where W&B cannot be used."""
    workspace = view(plain(cfg))
    if not wandb_key():
        raise ConfigError("there is no W&B key: `wandb login`, or set WANDB_API_KEY")
    try:
        if not workspace.entity:
            import wandb

            workspace.entity = wandb.Api().default_entity
        workspace.save()
    except Exception as error:  # of the network, the server, or the library
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"W&B does not take the view ({reason}): look at entity= and project=") from error
    print(workspace.url)


def view(about: dict[str, Any]) -> Any:
    """The wandb_workspaces.Workspace of a plain configuration. Raises ConfigError where the package is missing."""
    try:
        import wandb_workspaces.reports.v2 as panels
        import wandb_workspaces.workspaces as workspaces
    except ImportError as error:
        raise ConfigError(
            "a dashboard needs wandb-workspaces: pip install 'sdscratch[dashboard]'. The same curves are in each run's plots/"
        ) from error

    def panel(about: dict[str, Any]) -> Any:
        kinds = [kind for kind in PANEL_KINDS if kind in about]
        if len(kinds) != 1 or about.keys() - {"title", *PANEL_KINDS}:
            raise ConfigError(f"sections: {about} is no panel: expected a title and one of {', '.join(PANEL_KINDS)}")
        if kinds == ["pictures"]:
            return panels.MediaBrowser(title=about["title"], media_keys=about["pictures"])
        shown = {"metric_regex": about["pattern"]} if kinds == ["pattern"] else {"y": about["metrics"]}
        return panels.LinePlot(title=about["title"], x="samples_seen", **shown)

    return workspaces.Workspace(
        entity=about["entity"] or "",
        project=about["project"],
        name=about["name"],
        sections=[
            workspaces.Section(name=section["name"], panels=[panel(p) for p in section["panels"]], is_open=True)
            for section in about["sections"]
        ],
        settings=workspaces.WorkspaceSettings(x_axis="samples_seen"),
    )
