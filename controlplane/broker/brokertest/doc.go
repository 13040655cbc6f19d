// Package brokertest is the conformance suite of the brokers that carry the fleet
// link, with a throw-away PKI and a real mosquitto for tests.
package brokertest
