package modcheck

// WalkLimits are those of one function body.
type WalkLimits struct{ Params, Locals, Nesting, BranchTargets uint32 }

// Walk reads one function body, local declarations first, up to the end of
// what r was narrowed to. visit, if not nil, sees each instruction's first
// byte with its offset in the file.
func Walk(r *Reader, limits WalkLimits, visit func(offset int64, op byte)) {
	groups := r.Count("groups of locals", limits.Locals, 2)
	total := uint64(limits.Params)
	for i := uint32(0); i < groups && r.err == nil; i++ {
		off := r.Offset()
		total += uint64(r.U32())
		if r.err == nil && total > uint64(limits.Locals) {
			r.failAt(off, []error{ErrTooLarge}, "%d locals, the limit is %d", total, limits.Locals)
			return
		}
		switch t := r.Byte(); t {
		case 0x7f, 0x7e, 0x7d, 0x7c, 0x7b, 0x70, 0x6f:
		default:
			r.fail(ErrUnsupported, "locals of type %#x", t)
		}
	}
	depth := uint32(1)
	for r.err == nil && depth > 0 {
		off := r.Offset()
		op := r.Byte()
		if visit != nil && r.err == nil {
			visit(off, op)
		}
		switch {
		case op >= 0x45 && op <= 0xc4 || op <= 0x01 || op == 0x0f || op == 0x1a || op == 0x1b || op == 0x05 || op == 0xd1:
			// no immediates
		case op == 0x20 || op == 0x21 || op == 0x22 || op == 0x10 || op == 0x0c || op == 0x0d ||
			op == 0x23 || op == 0x24 || op == 0x25 || op == 0x26 || op == 0xd2:
			r.U32()
		case op == 0x41:
			r.SkipS(32)
		case op >= 0x28 && op <= 0x3e:
			r.memarg()
		case op == 0x0b:
			depth--
		case op == 0x02 || op == 0x03 || op == 0x04:
			r.SkipS(33)
			if depth++; depth > limits.Nesting {
				r.failAt(off, []error{ErrTooLarge}, "blocks nested deeper than %d", limits.Nesting)
			}
		case op == 0x42:
			r.SkipS(64)
		case op == 0x43:
			r.Skip(4)
		case op == 0x44:
			r.Skip(8)
		case op == 0x11:
			r.U32()
			r.U32()
		case op == 0x0e:
			n := r.Count("branch targets", limits.BranchTargets, 1)
			for i := uint32(0); i <= n && r.err == nil; i++ {
				r.U32()
			}
		case op == 0x3f || op == 0x40:
			r.U32()
		case op == 0x1c:
			r.Skip(int64(r.Count("types of select", 16, 1)))
		case op == 0xd0:
			r.Byte()
		case op == 0xfc:
			r.walkMisc(off)
		case op == 0xfd:
			r.walkVector(off)
		default:
			r.failAt(off, []error{ErrUnsupported}, "instruction %#x: %s", op, proposal(op))
		}
	}
	if r.err == nil && r.Left() > 0 {
		r.fail(ErrMalformed, "%d bytes after the end of the function", r.Left())
	}
}

func proposal(op byte) string {
	switch {
	case op >= 0x06 && op <= 0x0a || op == 0x18 || op == 0x19 || op == 0x1f:
		return "exception handling is off in this runtime"
	case op == 0x12 || op == 0x13:
		return "tail calls are off in this runtime"
	case op == 0x14 || op == 0x15 || op >= 0xd3 && op <= 0xd6:
		return "typed function references are off in this runtime"
	case op == 0xfb:
		return "garbage-collected types are off in this runtime"
	case op == 0xfe:
		return "threads are off in this runtime"
	}
	return "not known"
}

func (r *Reader) memarg() {
	off := r.Offset()
	if align := r.U32(); align > 16 && r.err == nil {
		r.failAt(off, []error{ErrMalformed}, "alignment 2^%d", align)
	}
	r.U32()
}

func (r *Reader) walkMisc(off int64) {
	switch sub := r.U32(); {
	case sub <= 7:
	case sub == 9 || sub == 11 || sub == 13 || sub == 15 || sub == 16 || sub == 17:
		r.U32()
	case sub == 8 || sub == 10 || sub == 12 || sub == 14:
		r.U32()
		r.U32()
	default:
		r.failAt(off, []error{ErrUnsupported}, "instruction fc %d", sub)
	}
}

func (r *Reader) walkVector(off int64) {
	switch sub := r.U32(); {
	case sub <= 11 || sub == 92 || sub == 93:
		r.memarg()
	case sub == 12 || sub == 13:
		r.Skip(16)
	case sub >= 21 && sub <= 34:
		r.Byte()
	case sub >= 84 && sub <= 91:
		r.memarg()
		r.Byte()
	case sub <= 255:
	default:
		r.failAt(off, []error{ErrUnsupported}, "instruction fd %d: relaxed vectors are off in this runtime", sub)
	}
}
