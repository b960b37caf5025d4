"""What the client raises."""

from service.api.views import FieldProblem, Problem


class ApiError(Exception):
    """The API refused or failed; carries the problem that it answered with."""

    def __init__(self, problem: Problem, retry_after_s: float | None = None) -> None:
        self.status = problem.status
        self.code = problem.code
        self.detail = problem.detail
        self.errors: list[FieldProblem] = problem.errors
        self.hint = problem.hint
        self.request_id = problem.request_id
        self.retry_after_s = retry_after_s
        """Seconds after which the API wants to be asked again, if it says."""
        self.passing = problem.status == 503
        """Whether it may go away by itself: nobody answered, or a part of the service is away."""
        super().__init__(f"{self.code}: {self.detail}")


class ApiUnreachableError(ApiError):
    """Nothing that speaks our protocol answers at the address."""

    def __init__(self, url: str, why: str, *, passing: bool = True) -> None:
        super().__init__(
            Problem(
                type="urn:capsnet:problem:api-unreachable",
                title="API unreachable",
                status=0,
                detail=f"no answer from {url}: {why}",
                code="api-unreachable",
                hint="`capsctl up` starts the service; CAPS_URL names another address",
            )
        )
        self.passing = passing
