"""Checks memtrace's exports with readers that are not memtrace's, against what the stalls were.

check.py WHAT DIRECTORY: the directory has the export, and expected.json with the stalls.
"""

import collections
import csv
import json
import pathlib
import re
import sys
import xml.etree.ElementTree

SECOND = 1_000_000_000


def equal(found, expected, what):
    assert found == expected, f"{what}: {repr(found)[:1000]} and not {repr(expected)[:1000]}"


def close(found, expected, what):
    assert abs(found - expected) <= expected / 1000 + 1, f"{what}: {found} and not {expected}"


def original(text):
    """The bytes of a name, as docs/json.md says."""
    escaped = re.compile(rb"\\x([89a-f][0-9a-f]|5c)")
    return escaped.sub(lambda found: bytes([int(found[1], 16)]), text.encode())


def number(text):
    return int(text) if text else None


def check_csv(directory, expected):
    with open(directory / "stalls.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, strict=True))
    equal(len(rows), len(expected["stalls"]), "stalls")
    for row, stall in zip(rows, expected["stalls"]):
        assert None not in row and None not in row.values(), f"another number of fields: {row}"
        whole, fraction = re.fullmatch(r"(.*)\.(\d{9})Z", row["time"]).groups()
        since = csv_seconds(whole) * SECOND + int(fraction)
        equal(since, stall["time_ns"], "time")
        for key in ["start_ns", "duration_ns", "pid", "tid", "uid", "cpu", "order", "cgroup_id", "target_cgroup_id", "nr_reclaimed"]:
            equal(number(row[key]), stall[key], key)
        for key in ["host", "comm", "cgroup", "target_cgroup"]:
            equal(original(row[key]), bytes.fromhex(stall[key]), key)
        for key in ["kind", "zone"]:
            equal(row[key], stall[key], key)
        equal(row["stack"], ";".join(stall["stack"]), "stack")
        parts = {name: number(row[name]) for name in expected["parts"] + ["shrink"]}
        shrinkers = dict(part.rsplit("=", 1) for part in row["shrinkers"].split(";") if part)
        shrinkers = {name: int(ns) for name, ns in shrinkers.items()}
        equal(shrinkers, stall["shrinkers"], "shrinkers")
        if stall["parts"] is None:
            equal(set(parts.values()), {None}, "parts")
            continue
        others = stall["parts"]["shrink:others"]
        equal(parts.pop("shrink"), others + sum(shrinkers.values()), "shrink")
        equal(parts, {name: stall["parts"][name] for name in parts}, "parts")
        equal(sum(parts.values()) + others + sum(shrinkers.values()), stall["duration_ns"], "all parts")


def csv_seconds(text):
    import datetime

    since = datetime.datetime.fromisoformat(text) - datetime.datetime(1970, 1, 1)
    return since.days * 86400 + since.seconds


class Trace:
    """A trace as trace_processor understands it, as far as memtrace writes it."""

    def __init__(self, path):
        from google.protobuf.unknown_fields import UnknownFieldSet
        from perfetto.protos.perfetto.trace import perfetto_trace_pb2 as proto

        trace = proto.Trace()
        trace.ParseFromString(path.read_bytes())
        self.tracks, self.events, self.clocks = {}, collections.defaultdict(list), None
        event_names, arg_names, strings = {}, {}, {}
        for packet in trace.packet:
            for message in [packet, packet.track_event, packet.track_descriptor, packet.interned_data]:
                equal(len(UnknownFieldSet(message)), 0, "fields that Perfetto does not know")
            equal(packet.trusted_packet_sequence_id, 1, "sequence")
            if packet.sequence_flags & proto.TracePacket.SEQ_INCREMENTAL_STATE_CLEARED:
                event_names, arg_names, strings = {}, {}, {}
            data = packet.interned_data
            event_names.update((name.iid, name.name) for name in data.event_names)
            arg_names.update((name.iid, name.name) for name in data.debug_annotation_names)
            strings.update((name.iid, name.str.decode()) for name in data.debug_annotation_string_values)
            if packet.HasField("clock_snapshot"):
                assert self.clocks is None, "one snapshot of clocks"
                snapshot = packet.clock_snapshot
                self.clocks = {clock.clock_id: clock.timestamp for clock in snapshot.clocks}
                equal(snapshot.primary_trace_clock, proto.BUILTIN_CLOCK_MONOTONIC, "the trace's clock")
            if packet.HasField("track_descriptor"):
                self.tracks[packet.track_descriptor.uuid] = packet.track_descriptor
            if packet.HasField("track_event"):
                equal(packet.timestamp_clock_id, proto.BUILTIN_CLOCK_MONOTONIC, "clock")
                assert packet.sequence_flags & proto.TracePacket.SEQ_NEEDS_INCREMENTAL_STATE
                event = packet.track_event
                assert event.track_uuid in self.tracks, "an event comes before its track"
                args = {}
                for arg in event.debug_annotations:
                    value = getattr(arg, arg.WhichOneof("value"))
                    if arg.WhichOneof("value") == "string_value_iid":
                        value = strings[value]
                    args[arg_names[arg.name_iid]] = value
                name = event_names[event.name_iid] if event.name_iid else None
                self.events[event.track_uuid].append((packet.timestamp, event, name, args))
        self.types = proto.TrackEvent
        for events in self.events.values():
            events.sort(key=lambda event: event[0])

    def time_of_day(self, timestamp):
        return timestamp - self.clocks[3] + self.clocks[1]

    def slices(self):
        """(track, begin, end, name, args, children) of outermost slices; fails where they do not nest."""
        for uuid, events in self.events.items():
            open_slices = []
            for at, event, name, args in events:
                if event.type == self.types.TYPE_SLICE_BEGIN:
                    open_slices.append((uuid, at, name, args, []))
                elif event.type == self.types.TYPE_SLICE_END:
                    uuid, begin, name, args, children = open_slices.pop()
                    for child in children:
                        assert begin <= child[1] <= child[2] <= at, "a part reaches out"
                    found = (uuid, begin, at, name, args, children)
                    if open_slices:
                        open_slices[-1][4].append(found)
                    else:
                        yield found
            assert not open_slices, "a slice has no end"

    def of_type(self, kind):
        for uuid, events in self.events.items():
            for at, event, name, args in events:
                if event.type == kind:
                    yield self.tracks[uuid], at, event, name, args


def check_perfetto(directory, expected):
    trace = Trace(directory / "trace.pftrace")
    stalls = collections.defaultdict(list)
    for stall in expected["stalls"]:
        stalls[stall["time_ns"], stall["boot"], stall["pid"], stall["tid"]].append(stall)
    names = {track.process.pid: track.process.process_name for track in trace.tracks.values() if track.HasField("process")}
    found = 0
    for uuid, begin, end, name, args, children in trace.slices():
        thread = trace.tracks[uuid].thread
        boot, pid = divmod(thread.pid, 1 << 22)
        equal(thread.tid >> 22, boot, "boot")
        assert thread.pid in names, "a thread's process has no name"
        stall = stalls[trace.time_of_day(begin), boot, pid, thread.tid % (1 << 22)].pop()
        found += 1
        equal(end - begin, stall["duration_ns"], "duration")
        equal(name, stall["kind"], "kind")
        equal(args["cpu"], stall["cpu"], "CPU")
        equal(args["nr_reclaimed"], stall["nr_reclaimed"], "pages")
        equal(args.get("order"), stall["order"], "order")
        equal(args.get("zone", ""), stall["zone"], "zone")
        equal(args.get("stack", ""), ";".join(stall["stack"]), "stack")
        equal(args["comm"], stall["comm_shown"], "comm")
        equal(args.get("cgroup", ""), stall["cgroup_shown"], "cgroup")
        equal(args.get("target_cgroup", ""), stall["target_cgroup_shown"], "target cgroup")
        parts = dict(stall["parts"] or {})
        parts.update((f"shrink:{function}", ns) for function, ns in stall["shrinkers"].items())
        parts = {name: ns for name, ns in parts.items() if ns}
        equal({child[3]: child[2] - child[1] for child in children}, parts, "parts")
        lengths = [child[2] - child[1] for child in children]
        equal(lengths, sorted(lengths, reverse=True), "the longest part first")
        at = begin
        for child in children:
            equal(child[1], at, "parts are end to end")
            equal(child[5], [], "nothing is in a part")
            assert "not when" in child[4]["note"]
            at = child[2]
    equal(found, len(expected["stalls"]), "stalls")

    counters = collections.defaultdict(list)
    for track, at, event, _, _ in trace.of_type(trace.types.TYPE_COUNTER):
        assert track.HasField("counter") and track.parent_uuid in trace.tracks
        value = getattr(event, event.WhichOneof("counter_value_field"))
        counters[track.name].append([trace.time_of_day(at), value])
    counters = {name: sorted(values) for name, values in counters.items()}
    equal(counters, expected["counters"], "counters")

    kills = list(trace.of_type(trace.types.TYPE_INSTANT))
    kills = [[trace.time_of_day(at), args["victim_pid"], args["victim_comm"], args["pid"]] for _, at, _, _, args in kills]
    equal(sorted(kills), expected["kills"], "OOM kills")


def check_nested(directory, expected):
    """Stalls that overlap are cut, and no more."""
    slices = list(Trace(directory / "trace.pftrace").slices())
    inside = lambda slices: sum(1 + inside(slice[5]) for slice in slices)
    equal(inside(slices), expected["slices"], "slices")
    by_track = collections.defaultdict(list)
    for uuid, begin, end, *_ in slices:
        by_track[uuid].append((begin, end))
    for spans in by_track.values():
        spans.sort()
        for (_, end), (begin, _) in zip(spans, spans[1:]):
            assert end <= begin, "slices of a track overlap"
        equal((spans[0][0], max(end for _, end in spans)), tuple(expected["span"]), "span")


def check_hlog(directory, expected):
    from hdrh.histogram import HdrHistogram
    from hdrh.log import HistogramLogReader

    intervals = collections.defaultdict(list)
    for stall in expected["stalls"]:
        second = (stall["time_ns"] + stall["duration_ns"]) // SECOND
        intervals[second, stall["kind"]].append(stall["duration_ns"])
    path = directory / "stalls.hlog"
    reader = HistogramLogReader(str(path), HdrHistogram(1, 3600 * SECOND, 3))
    last = 0
    while (histogram := reader.get_next_interval_histogram()) is not None:
        start, end = histogram.get_start_time_stamp(), histogram.get_end_time_stamp()
        assert start >= last, "lines are in order of time"
        last = start
        equal(end - start, 1000, "length of an interval")
        durations = intervals.pop((round(start / 1000), histogram.get_tag()))
        equal(histogram.get_total_count(), len(durations), "stalls")
        close(histogram.get_max_value(), max(durations), "longest")
        close(histogram.get_min_value(), min(durations), "shortest")
        close(histogram.get_mean_value() * len(durations), sum(durations), "sum")
        durations.sort()
        close(histogram.get_value_at_percentile(50), durations[(len(durations) - 1) // 2], "median")
    equal(dict(intervals), {}, "seconds that are missing")
    equal(reader.get_start_time_sec(), min(stall["time_ns"] for stall in expected["stalls"]) // SECOND, "start")
    lines = path.read_text(encoding="utf-8").splitlines()
    for line in lines:
        if line.startswith("Tag="):
            milliseconds = float(line.split(",")[3])
            assert 0 < milliseconds < 3600 * 1000, "the greatest is in milliseconds"
    assert any(line.startswith('"StartTimestamp"') for line in lines), "a legend"


def check_stacks(directory, expected):
    sums = collections.Counter()
    total = 0
    for stall in expected["stalls"]:
        frames = [f"{function}_[k]" for function in stall["stack"]]
        sums[";".join([stall["kind"], *stall["user_stack"], *frames])] += stall["duration_ns"]
        total += stall["duration_ns"]
    found = collections.Counter()
    for line in (directory / "stalls.folded").read_text(encoding="utf-8").splitlines():
        stack, us = re.fullmatch(r"(\S+) (\d+)", line).groups()
        found[stack.split(";", 1)[1]] += int(us)
    equal(set(found), set(sums), "stacks")
    for stack, ns in sums.items():
        # One line for each name, of which none is wrong by a microsecond.
        assert abs(found[stack] - ns / 1000) <= expected["names"], f"{stack}: {found[stack]} us and not {ns} ns"
    equal(sum(found.values()), (total + 500) // 1000, "microseconds")
    svg = xml.etree.ElementTree.parse(directory / "flame.svg")
    titles = [title.text for title in svg.iter("{http://www.w3.org/2000/svg}title")]
    whole = [title for title in titles if title.startswith("all (")]
    equal([title.split("(")[1].split(" ")[0].replace(",", "") for title in whole], [str(sum(found.values()))], "flame graph")


def main():
    checks = {
        "csv": check_csv,
        "perfetto": check_perfetto,
        "nested": check_nested,
        "hlog": check_hlog,
        "stacks": check_stacks,
    }
    what, directory = sys.argv[1], pathlib.Path(sys.argv[2])
    expected = json.loads((directory / "expected.json").read_text(encoding="utf-8"))
    checks[what](directory, expected)
    print(f"{what}: as expected")


main()
