package fleethub

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const (
	// Namespace holds what the fleet link keeps in the API.
	Namespace = "coracle-system"
	// RecordName is a Secret there: incarnation, epoch, key for hashes.
	RecordName = "coracle-fleet"

	recordType = corev1.SecretType("coracle.dev/fleet")

	keyIncarnation = "incarnation" // hex
	keyEpoch       = "epoch"       // decimal
	keyHashKey     = "hashKey"     // raw
	keyRestore     = "restore"     // JSON of a Restore: etcd was put back
	keyConfirmed   = "confirmed"   // ID of the restore that an operator confirmed
)

// ErrRecord is returned when the record of incarnation and epoch can't be read.
// Without it no order can be told from an older one.
var ErrRecord = errors.New("fleet record")

// reign is what a hub knows of itself for as long as it runs.
type reign struct {
	Epoch
	revision uint64 // of the write that raised the epoch
	hashKey  []byte
	// restore is the last one, nil if there was none; confirmed by an operator.
	restore   *Restore
	confirmed bool
}

// raiseEpoch raises the epoch in one write, which fails if another hub does the
// same. The incarnation is made once; a restore that the record doesn't know yet
// replaces it, in the same write.
func raiseEpoch(ctx context.Context, client kubernetes.Interface, restored *Restore) (reign, error) {
	for {
		r, err := tryRaiseEpoch(ctx, client, restored)
		if !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) {
			return r, err
		}
	}
}

func tryRaiseEpoch(ctx context.Context, client kubernetes.Interface, restored *Restore) (reign, error) {
	secrets := client.CoreV1().Secrets(Namespace)
	record, err := secrets.Get(ctx, RecordName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		if err := ensureNamespace(ctx, client); err != nil {
			return reign{}, err
		}
		record = &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Name: RecordName, Namespace: Namespace},
			Type:       recordType,
			Data: map[string][]byte{
				keyIncarnation: []byte(hex.EncodeToString(random(16))),
				keyEpoch:       []byte("1"),
				keyHashKey:     random(32),
			},
		}
		if err := begin(record, restored); err != nil {
			return reign{}, err
		}
		record, err = secrets.Create(ctx, record, metav1.CreateOptions{})
	case err == nil:
		var epoch uint64
		if epoch, err = strconv.ParseUint(string(record.Data[keyEpoch]), 10, 63); err != nil {
			return reign{}, badRecord("epoch", err)
		}
		record = record.DeepCopy()
		record.Data[keyEpoch] = []byte(strconv.FormatUint(epoch+1, 10))
		if err := begin(record, restored); err != nil {
			return reign{}, err
		}
		record, err = secrets.Update(ctx, record, metav1.UpdateOptions{})
	}
	if err != nil {
		return reign{}, fmt.Errorf("raising the epoch in secret %s/%s: %w", Namespace, RecordName, err)
	}
	return readReign(record)
}

// begin makes the record that of the incarnation that a restore began, once. What
// an operator confirmed names the ID of its restore and says nothing of this one.
func begin(record *corev1.Secret, restored *Restore) error {
	if restored == nil {
		return nil
	}
	last, err := readRestore(record)
	if err != nil || last != nil && last.ID == restored.ID {
		return err
	}
	raw, err := json.Marshal(restored)
	if err != nil {
		return err
	}
	record.Data[keyIncarnation], record.Data[keyRestore] = []byte(restored.Incarnation), raw
	return nil
}

func readRestore(record *corev1.Secret) (*Restore, error) {
	raw := record.Data[keyRestore]
	if len(raw) == 0 {
		return nil, nil
	}
	var r Restore
	if err := json.Unmarshal(raw, &r); err != nil || r.ID == "" {
		return nil, badRecord(keyRestore, err)
	}
	return &r, nil
}

func readReign(record *corev1.Secret) (reign, error) {
	var r reign
	incarnation, err := hex.DecodeString(string(record.Data[keyIncarnation]))
	if err != nil || len(incarnation) == 0 {
		return r, badRecord("incarnation", err)
	}
	if r.Number, err = strconv.ParseUint(string(record.Data[keyEpoch]), 10, 63); err != nil {
		return r, badRecord("epoch", err)
	}
	if r.hashKey = record.Data[keyHashKey]; len(r.hashKey) < 16 {
		return r, badRecord("hashKey", errors.New("too short"))
	}
	if r.restore, err = readRestore(record); err != nil {
		return r, err
	}
	r.confirmed = r.restore != nil && string(record.Data[keyConfirmed]) == r.restore.ID
	r.Incarnation = string(incarnation)
	r.Hub = string(random(8))
	r.revision = revisionOf(record.ResourceVersion)
	return r, nil
}

func badRecord(field string, err error) error {
	return fmt.Errorf("%w: field %s of secret %s/%s is damaged (%v); restore it from a backup of etcd: a new one would make every node believe that the cluster was replaced", ErrRecord, field, Namespace, RecordName, err)
}

func ensureNamespace(ctx context.Context, client kubernetes.Interface) error {
	_, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: Namespace}}, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("namespace %s: %w", Namespace, err)
	}
	return nil
}

// revisionOf reads a resourceVersion, which is etcd's revision; 0 if it isn't
// one (in tests).
func revisionOf(resourceVersion string) uint64 {
	n, err := strconv.ParseUint(resourceVersion, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
