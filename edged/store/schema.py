"""The tables, as a list of migrations. Entry n brings a file from user_version n to n+1, in one transaction.

The identity of a request is UNIQUE(client, key); `key` is the client's id, else its correlation data, else NULL, and
NULLs never collide. A packet of the current MQTT session is known by its id and digest in `packets`, apart from the
identity of the request, because brokers reuse packet ids. All that leaves the board does so through `deliveries`.
"""

from __future__ import annotations

MIGRATIONS = (
    """
    CREATE TABLE requests(
        seq INTEGER PRIMARY KEY,          -- order of arrival
        rid TEXT NOT NULL UNIQUE,
        client TEXT NOT NULL,
        key TEXT,                         -- 'id:...' or 'corr:...', NULL: every time it is sent it is asked
        digest BLOB NOT NULL,             -- of the content: the same key with another digest is an error
        id TEXT,                          -- as the client wrote it, for the reply
        transport TEXT NOT NULL,
        agent TEXT NOT NULL,
        conversation TEXT,
        priority INTEGER NOT NULL,        -- 0 before 1
        body BLOB NOT NULL,               -- the request, JSON
        boot TEXT NOT NULL,               -- the boot that deadline_boot counts in
        accepted_wall REAL NOT NULL,
        accepted_boot REAL NOT NULL,
        deadline_boot REAL,               -- NULL: no deadline
        state TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0,
        reply BLOB,                       -- the one reply, JSON: every copy that is sent is made from these bytes
        status TEXT,
        finished_wall REAL,
        UNIQUE(client, key)
    ) STRICT;
    CREATE INDEX requests_waiting ON requests(priority, deadline_boot, seq) WHERE state = 'received';
    CREATE INDEX requests_busy ON requests(client, agent, conversation)
        WHERE state IN ('received', 'running') AND conversation IS NOT NULL;
    CREATE INDEX requests_running ON requests(state) WHERE state IN ('running', 'answered');
    CREATE INDEX requests_finished ON requests(finished_wall) WHERE finished_wall IS NOT NULL;
    CREATE INDEX requests_by_id ON requests(id) WHERE id IS NOT NULL;

    CREATE TABLE steps(                   -- the journal: what the model decided, and what came of it
        rid TEXT NOT NULL REFERENCES requests(rid) ON DELETE CASCADE,
        step INTEGER NOT NULL,
        intent BLOB NOT NULL,             -- the call with its arguments, before anything is done
        result BLOB,                      -- NULL: not known to have been done
        PRIMARY KEY(rid, step)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE turns(                   -- conversations
        client TEXT NOT NULL,
        agent TEXT NOT NULL,
        conversation TEXT NOT NULL,
        seq INTEGER NOT NULL,             -- of the request that made it
        messages BLOB NOT NULL,
        expires_wall REAL NOT NULL,
        PRIMARY KEY(client, agent, conversation, seq)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX turns_expiry ON turns(expires_wall);

    CREATE TABLE deliveries(              -- the outbox: replies to publish
        id INTEGER PRIMARY KEY,
        rid TEXT NOT NULL REFERENCES requests(rid) ON DELETE CASCADE,
        transport TEXT NOT NULL,
        topic TEXT NOT NULL,
        correlation BLOB NOT NULL,        -- empty: none
        format TEXT NOT NULL,
        state TEXT NOT NULL,              -- waiting (for the answer) | ready | delivered
        UNIQUE(rid, topic, correlation)
    ) STRICT;
    CREATE INDEX deliveries_ready ON deliveries(id) WHERE state = 'ready';

    CREATE TABLE packets(                 -- MQTT packets of the current session that were committed
        mid INTEGER PRIMARY KEY,
        seq INTEGER NOT NULL,
        digest BLOB NOT NULL,
        rid TEXT NOT NULL REFERENCES requests(rid) ON DELETE CASCADE
    ) STRICT;
    CREATE INDEX packets_seq ON packets(seq);
    CREATE INDEX packets_rid ON packets(rid);
    """,
    # requests that wait for a link, and what the upstreams have cost
    """
    ALTER TABLE requests ADD COLUMN findings TEXT NOT NULL DEFAULT '';  -- router.Finding, oldest first, in words
    DROP INDEX requests_busy;
    CREATE INDEX requests_busy ON requests(client, agent, conversation)
        WHERE state IN ('received', 'running', 'waiting_link') AND conversation IS NOT NULL;
    CREATE INDEX requests_parked ON requests(priority, deadline_boot, seq) WHERE state = 'waiting_link';

    ALTER TABLE turns ADD COLUMN private INTEGER NOT NULL DEFAULT 1;  -- 1: no upstream ever sees it

    CREATE TABLE spending(                -- tokens of the upstreams, by day
        upstream TEXT NOT NULL,
        day TEXT NOT NULL,                -- UTC, YYYY-MM-DD
        tokens INTEGER NOT NULL,
        PRIMARY KEY(upstream, day)
    ) STRICT, WITHOUT ROWID;
    """,
    # what attempts have taken that did not bring the outcome
    """
    ALTER TABLE requests ADD COLUMN spent BLOB;         -- types.Spent, JSON; NULL: there was none, or it died
    """,
    # what models take in memory on this board
    """
    CREATE TABLE model_sizes(
        model TEXT PRIMARY KEY,           -- all that the size depends on: another of it is another row
        need BLOB NOT NULL,               -- types.MemoryNeed, JSON: as predicted
        measured INTEGER,                 -- bytes that it took; NULL: it was never loaded
        used_wall REAL NOT NULL
    ) STRICT, WITHOUT ROWID;
    """,
    # what changes with every step of a request lies on as few pages as can be: a page is written whole
    """
    CREATE TABLE replies(                 -- the one reply, JSON: every copy that is sent is made from these bytes
        seq INTEGER PRIMARY KEY REFERENCES requests(seq) ON DELETE CASCADE,
        reply BLOB NOT NULL
    ) STRICT;
    INSERT INTO replies SELECT seq, reply FROM requests WHERE reply IS NOT NULL;
    ALTER TABLE requests DROP COLUMN reply;

    DROP INDEX requests_waiting;
    DROP INDEX requests_running;
    DROP INDEX requests_parked;
    CREATE INDEX requests_unfinished ON requests(state, priority, deadline_boot, seq) WHERE finished_wall IS NULL;
    DROP INDEX packets_seq;               -- some hundred rows: quicker read than kept in order
    DROP INDEX packets_rid;
    """,
    # by which role a request was let in
    """
    ALTER TABLE requests ADD COLUMN role TEXT NOT NULL DEFAULT '';  -- '': no roles were configured
    """,
    # who did what
    """
    CREATE TABLE audit(
        seq INTEGER PRIMARY KEY,          -- without a gap
        at REAL NOT NULL,                 -- seconds since the epoch
        body BLOB NOT NULL,               -- types.AuditEntry, JSON
        hash BLOB NOT NULL                -- SHA-256 of the hash before, seq, at and body
    ) STRICT;
    CREATE TABLE audit_anchor(            -- the last row that was forgotten: the chain goes on behind it
        one INTEGER PRIMARY KEY CHECK (one = 0),
        seq INTEGER NOT NULL,
        hash BLOB NOT NULL
    ) STRICT;
    """,
    # what the daemon's ends tell of a request, and where it is going
    """
    ALTER TABLE requests ADD COLUMN ends INTEGER NOT NULL DEFAULT 0;     -- of the daemon, of any cause, while it ran
    ALTER TABLE requests ADD COLUMN alone INTEGER NOT NULL DEFAULT 0;    -- the last so many in a row, nothing else ran
    ALTER TABLE requests ADD COLUMN remote INTEGER NOT NULL DEFAULT 0;   -- 1: an upstream or a server does the work
    ALTER TABLE requests ADD COLUMN decision TEXT NOT NULL DEFAULT '';   -- the router's, in words; '': none holds
    UPDATE requests SET ends = attempts WHERE finished_wall IS NULL AND state = 'received';
    """,
    # whether times can be counted from when a request was accepted
    """
    ALTER TABLE requests ADD COLUMN clock_set INTEGER NOT NULL DEFAULT 1;  -- 0: nobody knew the time then
    """,
    # responses that a later request may go on from
    """
    CREATE TABLE responses(
        seq INTEGER PRIMARY KEY,
        id TEXT NOT NULL UNIQUE,
        client TEXT NOT NULL,
        thread TEXT NOT NULL,             -- the id that its dialogue began with
        previous TEXT,                    -- the id that it goes on from
        private INTEGER NOT NULL,         -- 1: no upstream ever sees it
        keyed INTEGER NOT NULL,           -- 1: the id is made of an Idempotency-Key
        boot TEXT NOT NULL,               -- the boot that created_boot counts in
        created_wall REAL NOT NULL,
        created_boot REAL NOT NULL,
        input BLOB NOT NULL,              -- what was asked, a list of items, JSON
        body BLOB NOT NULL                -- the response, JSON; an agent's without output until it has answered
    ) STRICT;
    CREATE INDEX responses_thread ON responses(thread);
    """,
    # what requests have taught
    """
    CREATE TABLE learnt(                  -- examples for a second look
        id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given again: somebody may name it
        rid TEXT UNIQUE REFERENCES requests(rid) ON DELETE CASCADE,  -- NULL: nobody asked it, it was added
        agent TEXT NOT NULL,
        role TEXT NOT NULL,               -- only requests of the same one see it
        tool TEXT NOT NULL,               -- of the first call
        source TEXT NOT NULL,             -- upstream | corrected | added
        private INTEGER NOT NULL,         -- 1: the request was not to leave the board
        text TEXT NOT NULL,
        calls BLOB NOT NULL,              -- the right ones, JSON
        at REAL NOT NULL                  -- seconds since the epoch
    ) STRICT;
    CREATE INDEX learnt_for ON learnt(agent, role, tool);
    """,
)
