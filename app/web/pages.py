"""What the pages that people read are made with."""

from urllib.parse import urlsplit

from jinja2 import Environment, PackageLoader, StrictUndefined


def page_templates(public_url: str) -> Environment:
    """Return the templates, which know below which path we are served.

    Args:
        public_url: Without a slash at its end.
    """
    templates = Environment(
        loader=PackageLoader("app.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals["root"] = urlsplit(public_url).path
    return templates
