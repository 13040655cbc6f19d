// Package broker carries the fleet's envelopes over MQTT: [Embedded] is a broker
// in this process, [External] a client of any other. The hub consumes both as
// fleethub.Transport, and one suite, brokertest, runs against both.
//
// A broker is a transport, not an authority: what it carries is signed and
// sealed end to end. It queues nothing for who isn't connected: sessions are
// clean, nothing is retained, and what a slow client can't take is dropped and
// sent again later by its sender.
//
// Who may use which topic follows from the common name of the client's
// certificate alone, see fleet.Allowed; [MosquittoConf] and [MosquittoACL] say the
// same to mosquitto.
package broker
