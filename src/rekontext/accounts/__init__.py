"""Who may use the service and what it costs them: accounts, keys, credits, limits, and the operators' audit log.

Repository functions take an open transaction (`Connection`) and are called through `Database.transact` or `read`.
"""

from rekontext.accounts import audit, integrity, keys, ledger, peppers, registry, statement
from rekontext.accounts.acts import FIRST_ACCOUNT, Acts
from rekontext.accounts.audit import AuditRecord
from rekontext.accounts.errors import (
    AccountRefused,
    AccountUnknown,
    CorrectionTooLarge,
    InsufficientCredits,
    KeyRefused,
    KeyUnknown,
    ModelNotAllowed,
    NameTaken,
    PepperChanged,
    RateLimited,
    ScopeMissing,
    SpendCapReached,
    TooManyKeys,
)
from rekontext.accounts.keys import SCOPES, ApiKey, KeyPolicy, NewKey, Scope, SyncResponse
from rekontext.accounts.ledger import Balance
from rekontext.accounts.limits import REQUESTS_PER_MINUTE_DEFAULT, Allowance, RequestLimiter
from rekontext.accounts.money import format_usd, parse_usd, usd
from rekontext.accounts.pricing import Tariff
from rekontext.accounts.registry import Account

__all__ = [
    "FIRST_ACCOUNT",
    "REQUESTS_PER_MINUTE_DEFAULT",
    "SCOPES",
    "Account",
    "AccountRefused",
    "AccountUnknown",
    "Acts",
    "Allowance",
    "ApiKey",
    "AuditRecord",
    "Balance",
    "CorrectionTooLarge",
    "InsufficientCredits",
    "KeyPolicy",
    "KeyRefused",
    "KeyUnknown",
    "ModelNotAllowed",
    "NameTaken",
    "NewKey",
    "PepperChanged",
    "RateLimited",
    "RequestLimiter",
    "Scope",
    "ScopeMissing",
    "SpendCapReached",
    "SyncResponse",
    "Tariff",
    "TooManyKeys",
    "audit",
    "format_usd",
    "integrity",
    "keys",
    "ledger",
    "parse_usd",
    "peppers",
    "registry",
    "statement",
    "usd",
]
