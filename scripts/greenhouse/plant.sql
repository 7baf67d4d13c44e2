-- The greenhouse's own database: its device writes what it measures and does what valve_commands says.
PRAGMA journal_mode = WAL;
CREATE TABLE tank_levels(tank TEXT NOT NULL, level REAL NOT NULL, at TEXT NOT NULL);
CREATE TABLE air(temperature_celsius REAL NOT NULL, humidity_percent REAL NOT NULL, at TEXT NOT NULL);
CREATE TABLE harvest(crop TEXT NOT NULL, kg REAL NOT NULL, day TEXT NOT NULL);
CREATE TABLE valve_commands(
    id INTEGER PRIMARY KEY, valve TEXT NOT NULL, position TEXT NOT NULL, at TEXT NOT NULL DEFAULT (datetime('now')),
    done_at TEXT
);
INSERT INTO tank_levels VALUES ('north', 63, datetime('now', '-1 minutes')), ('south', 41, datetime('now', '-1 minutes'));
INSERT INTO air VALUES (24.5, 61, datetime('now', '-1 minutes'));
INSERT INTO harvest VALUES
    ('tomatoes', 4.2, date('now', '-1 days')), ('tomatoes', 3.9, date('now', '-4 days')),
    ('tomatoes', 5.0, date('now', '-12 days')), ('cucumbers', 2.7, date('now', '-2 days')),
    ('cucumbers', 3.1, date('now', '-20 days')), ('peppers', 1.4, date('now', '-6 days'));
