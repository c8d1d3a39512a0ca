"""An agent made with the Agent Client Protocol's official library: it repeats what it is told, and says whether it may.

Its sessions are files in its working directory, a message a line.
"""
import asyncio
import pathlib
import uuid

import acp
from acp.schema import AgentCapabilities, PermissionOption, ToolCallUpdate


class Parrot(acp.Agent):
    def on_connect(self, conn):
        self.client = conn

    async def initialize(self, protocol_version, client_capabilities=None, client_info=None, **kwargs):
        assert client_info.name == "hermes-gateway" and not client_capabilities.terminal
        capabilities = AgentCapabilities(load_session=True)
        return acp.InitializeResponse(protocol_version=protocol_version, agent_capabilities=capabilities)

    async def new_session(self, cwd, **kwargs):
        session = uuid.uuid4().hex
        pathlib.Path(cwd, session).touch()
        return acp.NewSessionResponse(session_id=session)

    async def load_session(self, cwd, session_id, **kwargs):
        for line in pathlib.Path(cwd, session_id).read_text().splitlines():
            await self.client.session_update(session_id, acp.update_agent_message(acp.text_block(line)))
        return acp.LoadSessionResponse()

    async def prompt(self, session_id, prompt, **kwargs):
        text = " ".join(block.text for block in prompt)
        with open(session_id, "a") as file:
            file.write(text + "\n")
        if text == "may I?":
            options = [PermissionOption(option_id=kind, name=kind, kind=kind) for kind in ("allow_once", "reject_once")]
            call = ToolCallUpdate(tool_call_id="1", title="a tool")
            answer = await self.client.request_permission(session_id, call, options)
            text = answer.outcome.option_id
        elif text == "how many?":
            text = str(len(pathlib.Path(session_id).read_text().splitlines()))
        elif text == "wait":
            self.waiting = asyncio.Event()
            await self.client.session_update(session_id, acp.update_agent_message(acp.text_block("waiting")))
            await self.waiting.wait()
            return acp.PromptResponse(stop_reason="cancelled")
        for word in text.split(" "):
            await self.client.session_update(session_id, acp.update_agent_message(acp.text_block(word)))
        return acp.PromptResponse(stop_reason="end_turn")

    async def cancel(self, session_id, **kwargs):
        self.waiting.set()


asyncio.run(acp.run_agent(Parrot()))
