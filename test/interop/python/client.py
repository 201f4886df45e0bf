"""A client in Python, that prints "ok" and what held for each thing that did."""

import pathlib
import sys
import uuid

import grpc
from google.protobuf.json_format import MessageToDict
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from grpc_status import rpc_status
from memory.v1 import (
    conversation_service_pb2,
    conversation_service_pb2_grpc,
    memory_service_pb2,
    memory_service_pb2_grpc,
    message_pb2,
    session_pb2,
)

CALL = {
    "metadata": (("x-tenant-id", "acme"), ("x-env", "dev"), ("x-user-id", "member")),
    "timeout": 15,
}


def check(what, holds, found):
    if not holds:
        sys.exit(f"{what}: {found}")
    print("ok", what, flush=True)


def round_trip(memory, conversation):
    thread = f"python-{uuid.uuid4()}"
    session = session_pb2.Session(surface_id="python", thread_id=thread)
    session.preferences.update({"tone": "short", "depth": 3})
    request = memory_service_pb2.UpsertSessionRequest(session=session, request_id=str(uuid.uuid4()))
    upserted = memory.UpsertSession(request, **CALL)
    check("upserts a session", upserted.created and upserted.session.revision == 1, upserted)
    preferences = MessageToDict(upserted.session.preferences)
    check("reads a Struct", preferences == {"tone": "short", "depth": 3}, preferences)

    request = conversation_service_pb2.AppendMessagesRequest(
        session_id=upserted.session.id,
        messages=[
            message_pb2.Message(role=message_pb2.MESSAGE_ROLE_HUMAN, content="Grüße 👋"),
            message_pb2.Message(role=message_pb2.MESSAGE_ROLE_ASSISTANT, content="Hello."),
        ],
        request_id=str(uuid.uuid4()),
    )
    appended = conversation.AppendMessages(request, **CALL)
    check("appends messages", [message.seq for message in appended.messages] == [1, 2], appended)
    again = conversation.AppendMessages(request, **CALL)
    check("appends once for one request_id", again == appended, again)

    listed = conversation.ListMessages(
        conversation_service_pb2.ListMessagesRequest(thread_id=thread, after_seq=0), **CALL
    )
    check("lists messages", [message.content for message in listed.messages] == ["Grüße 👋", "Hello."], listed)

    forwarded = memory.ForwardBundle(
        memory_service_pb2.ForwardBundleRequest(
            inline=memory_service_pb2.InlineBundle(
                source_thread_id=thread, selection=message_pb2.MessageSelection(last_n=1)
            ),
            target_thread_id=f"{thread}-target",
            create_target=True,
            request_id=str(uuid.uuid4()),
        ),
        **CALL,
    )
    check("forwards a bundle", forwarded.first_seq == 1 and forwarded.bundle.message_count == 1, forwarded)


def stream_and_watch(conversation):
    thread = f"python-{uuid.uuid4()}"

    def frame(**fields):
        return conversation_service_pb2.StreamMessageRequest(**fields)

    def frames():
        yield frame(
            open=conversation_service_pb2.StreamOpen(
                thread_id=thread, role=message_pb2.MESSAGE_ROLE_ASSISTANT, client_id="answer"
            )
        )
        offset = 0
        for text in ["Grüße ", "👋"]:
            yield frame(chunk=conversation_service_pb2.StreamChunk(offset=offset, text=text))
            offset += len(text.encode())
        yield frame(finish=conversation_service_pb2.StreamFinish())

    answers = list(conversation.StreamMessage(frames(), **CALL))
    check("opens a stream at its start", answers[0].opened.seq == 1 and answers[0].opened.durable_offset == 0, answers)
    check("finishes it", answers[-1].finished.message.state == message_pb2.MESSAGE_STATE_COMPLETE, answers)

    watch = conversation.WatchThread(conversation_service_pb2.WatchThreadRequest(thread_id=thread), **CALL)
    text, kinds = "", []
    for response in watch:
        kinds.append(response.event.WhichOneof("event"))
        text += response.event.text_delta.text
        if kinds[-1] == "bookmark":
            break
    watch.cancel()
    check("watches it", text == "Grüße 👋" and (kinds[0], kinds[-2]) == ("appended", "finished"), kinds)


def details(error):
    """The reason of an error, and the fields that it finds fault with."""
    reason, fields = "", []
    for detail in rpc_status.from_call(error).details:
        if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            detail.Unpack(info)
            reason = info.reason
        elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad_request = error_details_pb2.BadRequest()
            detail.Unpack(bad_request)
            fields = [violation.field for violation in bad_request.field_violations]
    return reason, fields


def refused(call, request):
    try:
        answer = call(request, **CALL)
    except grpc.RpcError as error:
        return error.code(), *details(error)
    sys.exit(f"should have been refused: {answer}")


def read_errors(memory):
    bad = memory_service_pb2.UpsertSessionRequest(request_id="no-uuid", session=session_pb2.Session())
    code, reason, fields = refused(memory.UpsertSession, bad)
    invalid = code == grpc.StatusCode.INVALID_ARGUMENT
    check("reads the reason of an error", invalid and reason == "INVALID_REQUEST", (code, reason))
    check("reads its violations", sorted(fields) == ["request_id", "session.surface_id"], fields)

    missing = memory_service_pb2.GetSessionRequest(session_id=str(uuid.uuid4()))
    code, reason, _ = refused(memory.GetSession, missing)
    check("tells what is missing", code == grpc.StatusCode.NOT_FOUND and reason == "NOT_FOUND", (code, reason))


def main():
    # It retries UNAVAILABLE: the call may have taken effect, which is why every change carries a request_id.
    options = [("grpc.service_config", pathlib.Path(sys.argv[2]).read_text(encoding="utf-8"))]
    with grpc.insecure_channel(sys.argv[1], options) as channel:
        services = ProtoReflectionDescriptorDatabase(channel).get_services()
        check("lists the services by reflection", "memory.v1.MemoryService" in services, services)
        memory = memory_service_pb2_grpc.MemoryServiceStub(channel)
        conversation = conversation_service_pb2_grpc.ConversationServiceStub(channel)
        round_trip(memory, conversation)
        stream_and_watch(conversation)
        read_errors(memory)


main()
