"""Where each module goes when the house is furnished: today's file to its room, in one commit that does nothing else.

Until then the rules of `house.py` are checked against the places that files will have. The commit that moves them
empties MOVES; what is left of JOINED is done afterwards, a room a commit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

MOVES: Mapping[str, str] = {
    "broker": """
        __init__ __main__ app calls commandline decisions gateway grants host:scope library_logs logs pulse records
        transferrecords:transfer_records wiring
    """,
    "broker/access": "peerwatch",
    "broker/audit": """
        audit auditlog:logfile auditrun:run auditsync:sync auditwriter:writer events freeing redact refusals
        secretwords:secret_words
    """,
    "broker/contract": """
        contract:table decode errors faults:faults fields jobrequests:command_requests jobresults:command_results
        longtext:long_text names
        requests results schema toolrow:row transferrequests:transfer_requests transferresults:transfer_results
        treerequests:tree_requests treeresults:tree_results wire:encode
    """,
    "broker/doctor": "approaches checks doctor ownport:own_port surroundings:fixtures",
    "broker/endpoint": """
        endpoint:adapter listener:http outputdesk:outputs pipe resources stdio tasks toolresult:tool_result
    """,
    "broker/http": """
        admission bodyshape:body_shape bodysocket bulk connections exchange:asgi guard large_answers
        mcpsessions:mcp_sessions origins slots:in_flight sockets transferanswers:transfer_answer
        transferbodies:transfer_body transferdoor:transfer_door transferhead:transfer_head
    """,
    "broker/memory": "answerroom:answers bytebudget:budget heap",
    "broker/session": """
        aftermath archives belongings:resources cuts:url_ends job:command jobs:commands namelocks:name_locks
        outputuri:outputs rawtransfers:urls session supervisor
    """,
    "broker/tools": """
        ansi archivetools:archives changetools:changes edittool:edit filerules:rules filetools:files jobtools:commands
        lines narration:progress outputtools:output readtool:read textedit:edit_text textpart:text_part tools:sessions
        transfertools:transfers treetools:trees
    """,
    "broker/trusted": "ownership program trusted:places untenable",
    "config": "__init__ checks faults keys load places settings sources structure yamlnodes",
    "policy": """
        __init__ arguments candidates command decision environment explain gates git grammar known network path pattern
        rules treefilter variables
    """,
    "policy/packs": "closing pack_persistence:persistence pack_secrets:secrets packs",
    "sandbox": "__init__ beneath:paths faults:errors polled shortage sniffing threads wire",
    "sandbox/cgroup": """
        cgroup:group cgroup_base:place cgroup_chores:chores cgroup_layer:layer cgroup_leaves:session cgroup_tree:tree
        cgroup_values:usage
    """,
    "sandbox/commands": "command:run ends:excerpt launching running spill streams terminal transcript",
    "sandbox/files": """
        archives descriptors:disk exchange:opener_client file_errors:errors files hashes namework:names part_file:part
        pinned treework:trees
    """,
    "sandbox/init": "child:spare farewell keepers launcher session_init:init slot:keeper slots:keeper_pool",
    "sandbox/inside": "hiding:blocked_paths sniffer stages",
    "sandbox/inside/init": """
        accounts ahead:prepare beside birth findings:probes init:main siege:attacks siege_around:attacks_around trial
    """,
    "sandbox/inside/keeper": "keeper leader:forked seeker:search_output spawner:spawned wakeup",
    "sandbox/inside/opener": "nameops:names opener:main",
    "sandbox/inside/unfinished": "leftovers:hidden parts staging:stage",
    "sandbox/inside/worker": """
        aftermath archive_pack:pack archive_unpack:unpack copying:copy descent filehash:hash gitconfig globs
        job links moving:move
        tarmembers:tar_members tarpipe:tar_pipe tarread:tar tarwrite:tar_write treechange:change treelook:look
        treesearch:search treeworker:main walk
    """,
    "sandbox/kernel": """
        landlock masks mounting mounts:root nameless namespaces openat:files pids prctl:process renaming rlimits room
        seccomp syscalls trees:processes
    """,
    "sandbox/machine": "capabilities claims facts holders netpeers programs",
    "sandbox/plan": "grants:walls limits new_root plan spaces system system_search users",
    "transfers": """
        __init__ coverage declared digest disk download:download_state downloads filestreams media part quota readahead
        refusals resthash:rest_hash settings store streams threads ticket upload:upload_state uploads
    """,
}
"""By room, the modules that go there from its package's folder; `old:new` where the name changes."""

JOINED: Mapping[str, str] = {
    "broker": "library_logs:logs transfer_records:records",
    "broker/contract": """
        command_requests:commands command_results:commands requests:sessions results:files row:table
        transfer_requests:transfers transfer_results:transfers tree_requests:trees tree_results:trees
    """,
    "broker/endpoint": "pipe:stdio",
    "broker/http": "in_flight:admission large_answers:asgi",
    "broker/session": "command:commands url_ends:urls",
    "broker/tools": "archives:transfers lines:read text_part:read",
    "policy": "gates:arguments network:known",
    "sandbox/commands": "launching:run",
    "sandbox/init": "farewell:init keepers:keeper_pool",
    "sandbox/inside/worker": "descent:unpack gitconfig:aftermath links:walk move:change tar_write:tar",
    "sandbox/kernel": "masks:root nameless:files pids:processes renaming:files room:files",
    "sandbox/plan": "new_root:walls system:walls",
    "transfers": "coverage:filestreams declared:digest part:upload quota:upload readahead:filestreams rest_hash:digest",
}
"""By room, the pieces that become part of another file after the move: `piece:whole`."""


def moves() -> dict[str, str]:
    """Return old path to new path of every module, unmoved ones too."""
    return {
        f"{room.partition('/')[0]}/{old}.py": f"{room}/{new}.py"
        for room, names in MOVES.items()
        for old, new in _pairs(names)
    }


def joined() -> dict[str, str]:
    """Return the path after the move to the path after the pieces are put together."""
    return {
        f"{room}/{piece}.py": f"{room}/{whole}.py" for room, names in JOINED.items() for piece, whole in _pairs(names)
    }


def _pairs(names: str) -> Iterator[tuple[str, str]]:
    for name in names.split():
        old, _, new = name.partition(":")
        yield old, new or old
