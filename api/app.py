"""The entry point of the API: the Flask app, assembled from its parts."""

from __future__ import annotations

from flask import Blueprint, Flask
from werkzeug.middleware.proxy_fix import ProxyFix

from maskfleet.api import health
from maskfleet.api.authorization import register_authorization
from maskfleet.api.cors import register_cors
from maskfleet.api.hosts import register_hosts
from maskfleet.api.problems import register_problems
from maskfleet.api.request_body import MAX_SPEC_BYTES
from maskfleet.api.request_context import register_request_context
from maskfleet.api.routes import (
    batches,
    deliveries,
    docs,
    events,
    exports,
    fleet,
    images,
    jobs,
    models,
    page,
    results,
    retry_delete,
    tokens,
    uploads,
    webhooks,
)
from maskfleet.api.services import EXTENSION, give_room_back, make_services
from maskfleet.jobs.logs import get_logger
from maskfleet.jobs.settings import ApiSettings


def create_app(settings: ApiSettings | None = None) -> Flask:
    """Make the app.  Without settings, read them from the environment, once, here."""
    settings = settings if settings is not None else ApiSettings()
    app = Flask("maskfleet.api", static_folder=None)
    app.config.update(
        MAX_CONTENT_LENGTH=settings.max_body_bytes,
        # A multipart request has two parts: the job, whose own limit request_body reports with a better message, and
        # the image, which goes to a file.
        MAX_FORM_MEMORY_SIZE=16 * MAX_SPEC_BYTES,
        MAX_FORM_PARTS=8,
    )
    proxies = settings.trusted_proxies
    app.wsgi_app = ProxyFix(app.wsgi_app, x_for=proxies, x_proto=proxies)  # type: ignore[method-assign]  # as Flask documents
    app.extensions[EXTENSION] = make_services(settings)
    app.url_map.converters["msg"] = deliveries.MessageId
    register_request_context(app)
    register_problems(app)
    register_hosts(app)
    register_cors(app)
    register_authorization(app)
    app.teardown_request(give_room_back)
    app.register_blueprint(health.blueprint)
    app.register_blueprint(page.blueprint)
    app.register_blueprint(docs.blueprint)
    app.register_blueprint(_v1())
    if not settings.api_keys:
        get_logger().info("no_api_keys_in_settings", effect="only keys made with `maskfleet keys create` are accepted")
    return app


def _v1() -> Blueprint:
    v1 = Blueprint("v1", __name__, url_prefix="/v1")
    of_jobs = (jobs, images, batches, events, retry_delete, results, exports)
    for part in (*of_jobs, deliveries, webhooks, uploads, models, tokens, fleet):
        v1.register_blueprint(part.blueprint)
    return v1
