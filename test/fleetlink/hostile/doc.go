// Package hostile is a broker that can't be trusted: a [Proxy] between MQTT
// clients and a real broker that drops, delays, repeats, reorders, replays,
// damages and forges what goes through, in both directions, and cuts
// connections. The fleet link must lose nothing by it but time. Tests of the
// link use it; it imports the link's contract and MQTT's packets, nothing else of
// ours.
package hostile
