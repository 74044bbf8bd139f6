"""The life of an edit from accept to its one end, durable in the database: see docs/states.md.

`Desk` is what the wire calls, `Dispatcher` runs jobs on a fleet, `JobLife` has the transitions.
"""

from rekontext.jobs import assets, endpoints, idempotency, loras, queries, trial, usage, workers
from rekontext.jobs.assets import Asset, AssetUnknown, UploadsFull
from rekontext.jobs.desk import Desk, Standing
from rekontext.jobs.dispatcher import Dispatcher
from rekontext.jobs.endpoints import Delivery, Endpoint, TooManyMessages, WebhookRefused, WebhookUnknown
from rekontext.jobs.errors import (
    ATTEMPT_FAULTS,
    IdempotencyKeyReused,
    JobRefused,
    JobUnknown,
    LeaseLost,
    QueueFull,
    TooManyInFlight,
)
from rekontext.jobs.events import Event, EventHub
from rekontext.jobs.idempotency import KEY_CHARACTERS_MAX
from rekontext.jobs.life import Accepted, JobLife, TakenBack
from rekontext.jobs.loras import Lora, LorasFull, LoraUnknown
from rekontext.jobs.model import (
    Bounds,
    Idempotency,
    Job,
    Lease,
    Order,
    Output,
    Patience,
    State,
)
from rekontext.jobs.objects import (
    ASSETS_FOLDER,
    LORAS_FOLDER,
    Objects,
    asset_key,
    clear_away,
    input_key,
    lora_key,
    mask_key,
    output_key,
)
from rekontext.jobs.others import Others
from rekontext.jobs.outbox import EVENT_TYPES, Outbox
from rekontext.jobs.posting import WebhookPost
from rekontext.jobs.queries import Page, history, unfinished_by_state
from rekontext.jobs.sweeper import Retention, Sweeper
from rekontext.jobs.webhooks import Deliverer, NotDelivered, pending_messages
from rekontext.jobs.workbench import File, Workbench

__all__ = [
    "ASSETS_FOLDER",
    "ATTEMPT_FAULTS",
    "EVENT_TYPES",
    "KEY_CHARACTERS_MAX",
    "LORAS_FOLDER",
    "Accepted",
    "Asset",
    "AssetUnknown",
    "Bounds",
    "Deliverer",
    "Delivery",
    "Desk",
    "Dispatcher",
    "Endpoint",
    "Event",
    "EventHub",
    "File",
    "Idempotency",
    "IdempotencyKeyReused",
    "Job",
    "JobLife",
    "JobRefused",
    "JobUnknown",
    "Lease",
    "LeaseLost",
    "Lora",
    "LoraUnknown",
    "LorasFull",
    "NotDelivered",
    "Objects",
    "Order",
    "Others",
    "Outbox",
    "Output",
    "Page",
    "Patience",
    "QueueFull",
    "Retention",
    "Standing",
    "State",
    "Sweeper",
    "TakenBack",
    "TooManyInFlight",
    "TooManyMessages",
    "UploadsFull",
    "WebhookPost",
    "WebhookRefused",
    "WebhookUnknown",
    "Workbench",
    "asset_key",
    "assets",
    "clear_away",
    "endpoints",
    "history",
    "idempotency",
    "input_key",
    "lora_key",
    "loras",
    "mask_key",
    "output_key",
    "pending_messages",
    "queries",
    "trial",
    "unfinished_by_state",
    "usage",
    "workers",
]
