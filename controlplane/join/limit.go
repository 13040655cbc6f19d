package join

import (
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// maxSources bounds the memory of the limiter; beyond it, strangers share one bucket.
const maxSources = 4096

// sources limits requests per source address; the /64 of an IPv6 address is one source.
type sources struct {
	limit rate.Limit
	burst int
	now   func() time.Time

	mu     sync.Mutex
	each   map[netip.Prefix]*source
	shared *rate.Limiter
}

type source struct {
	limiter *rate.Limiter
	last    time.Time
}

func newSources(perSecond float64, now func() time.Time) *sources {
	burst := max(1, int(10*perSecond))
	return &sources{
		limit: rate.Limit(perSecond), burst: burst, now: now,
		each:   map[netip.Prefix]*source{},
		shared: rate.NewLimiter(rate.Limit(perSecond), burst),
	}
}

func (s *sources) allow(remote string) bool {
	now := s.now()
	addr, err := netip.ParseAddrPort(remote)
	if err != nil {
		return s.shared.AllowN(now, 1)
	}
	ip := addr.Addr().Unmap()
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	// Prefix fails only for too many bits.
	prefix, _ := ip.WithZone("").Prefix(bits)
	s.mu.Lock()
	defer s.mu.Unlock()
	one, ok := s.each[prefix]
	if !ok {
		if len(s.each) >= maxSources {
			s.forget(now)
		}
		if len(s.each) >= maxSources {
			return s.shared.AllowN(now, 1)
		}
		one = &source{limiter: rate.NewLimiter(s.limit, s.burst)}
		s.each[prefix] = one
	}
	one.last = now
	return one.limiter.AllowN(now, 1)
}

// forget drops the sources whose bucket is full again. Caller holds mu.
func (s *sources) forget(now time.Time) {
	for prefix, one := range s.each {
		if now.Sub(one.last) > 20*time.Second {
			delete(s.each, prefix)
		}
	}
}
