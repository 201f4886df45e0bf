"""Writes a thread as LangGraph's Postgres checkpointer for Python does: python langgraph_thread.py URL."""

import datetime
import sys
import uuid

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.postgres import PostgresSaver

VALUES = {
    "messages": [
        SystemMessage("Be kind", id="s"),
        HumanMessage("Hello", id="h"),
        AIMessage("", id="a", tool_calls=[{"id": "c1", "name": "search", "args": {"q": "x"}}]),
        ToolMessage("found", tool_call_id="c1"),
        AIMessage([{"type": "text", "text": "Done"}, {"type": "image_url", "image_url": {"url": "https://x"}}], id="b"),
    ],
    "topic": "tea",
    "seen": {1, 2},
    "when": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
    "ticket": uuid.UUID(int=1),
    "branch:to:agent": None,
}

with PostgresSaver.from_conn_string(sys.argv[1]) as saver:
    saver.setup()
    versions = {channel: saver.get_next_version(None, None) for channel in VALUES}
    checkpoint = {**empty_checkpoint(), "ts": "2024-01-02T00:00:00+00:00", "channel_values": VALUES, "channel_versions": versions}
    config = {"configurable": {"thread_id": "python", "checkpoint_ns": "", "user_id": "alice"}}
    saver.put(config, checkpoint, {"source": "loop", "step": 1, "parents": {}}, versions)
