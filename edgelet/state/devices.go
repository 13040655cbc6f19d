package state

// bucketDevices: pod uid, or a name of edgelet/devices' own -> opaque. It is made
// with the first device that a pod gets: a node without device plugins doesn't
// have it, and an agent that doesn't know it reads the file all the same.
var bucketDevices = []byte("devices")

// DeviceRecords returns what edgelet/devices keeps, by key.
func (s *Store) DeviceRecords() (map[string][]byte, error) { return s.records(bucketDevices) }

// PutDeviceRecord replaces a record and returns when that is durable; nil deletes
// it.
func (s *Store) PutDeviceRecord(key string, record []byte) error {
	return s.putRecord(bucketDevices, "storing the devices of "+key, key, record)
}
