from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobServiceRequest(_message.Message):
    __slots__ = ("job_id", "job_set_id", "queue")
    JOB_ID_FIELD_NUMBER: _ClassVar[int]
    JOB_SET_ID_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    job_id: str
    job_set_id: str
    queue: str
    def __init__(self, job_id: _Optional[str] = ..., job_set_id: _Optional[str] = ..., queue: _Optional[str] = ...) -> None: ...

class JobServiceResponse(_message.Message):
    __slots__ = ("state", "error")
    class State(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        SUBMITTED: _ClassVar[JobServiceResponse.State]
        DUPLICATE_FOUND: _ClassVar[JobServiceResponse.State]
        RUNNING: _ClassVar[JobServiceResponse.State]
        FAILED: _ClassVar[JobServiceResponse.State]
        SUCCEEDED: _ClassVar[JobServiceResponse.State]
        CANCELLED: _ClassVar[JobServiceResponse.State]
        JOB_ID_NOT_FOUND: _ClassVar[JobServiceResponse.State]
        CONNECTION_ERR: _ClassVar[JobServiceResponse.State]
    SUBMITTED: JobServiceResponse.State
    DUPLICATE_FOUND: JobServiceResponse.State
    RUNNING: JobServiceResponse.State
    FAILED: JobServiceResponse.State
    SUCCEEDED: JobServiceResponse.State
    CANCELLED: JobServiceResponse.State
    JOB_ID_NOT_FOUND: JobServiceResponse.State
    CONNECTION_ERR: JobServiceResponse.State
    STATE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    state: JobServiceResponse.State
    error: str
    def __init__(self, state: _Optional[_Union[JobServiceResponse.State, str]] = ..., error: _Optional[str] = ...) -> None: ...

class HealthCheckResponse(_message.Message):
    __slots__ = ("status",)
    class ServingStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        UNKNOWN: _ClassVar[HealthCheckResponse.ServingStatus]
        SERVING: _ClassVar[HealthCheckResponse.ServingStatus]
        NOT_SERVING: _ClassVar[HealthCheckResponse.ServingStatus]
    UNKNOWN: HealthCheckResponse.ServingStatus
    SERVING: HealthCheckResponse.ServingStatus
    NOT_SERVING: HealthCheckResponse.ServingStatus
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: HealthCheckResponse.ServingStatus
    def __init__(self, status: _Optional[_Union[HealthCheckResponse.ServingStatus, str]] = ...) -> None: ...
