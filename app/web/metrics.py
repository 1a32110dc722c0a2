"""What Prometheus reads. Not in the API description: it is the operator's, not the API's."""

import hmac

from fastapi import APIRouter, Depends, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import SecretStr

from app.base.errors import InvalidToken, Unauthenticated
from app.base.metrics import CONTENT_TYPE
from app.web.callers import RuntimeDep

_bearer = HTTPBearer(auto_error=False)


def metrics_page(token: SecretStr | None) -> APIRouter:
    """Return the route `/metrics`.

    Args:
        token: What a caller has to bring; None lets everybody read, as in the sandbox.
    """

    async def ask_for_token(
        brought: HTTPAuthorizationCredentials | None = Depends(_bearer),
    ) -> None:
        if token is None:
            return
        if brought is None:
            raise Unauthenticated("Send Authorization: Bearer with the METRICS_TOKEN.")
        # As bytes: text that is not ASCII cannot be compared in constant time.
        if not hmac.compare_digest(brought.credentials.encode(), token.get_secret_value().encode()):
            raise InvalidToken("This is not the METRICS_TOKEN.")

    router = APIRouter(include_in_schema=False, dependencies=[Depends(ask_for_token)])

    @router.get("/metrics")
    def read_metrics(runtime: RuntimeDep) -> Response:
        # A plain def, so that reading the files of other workers holds nobody up.
        return Response(
            runtime.metrics.exposition(),
            media_type=CONTENT_TYPE,
            headers={"Cache-Control": "no-store"},
        )

    return router
