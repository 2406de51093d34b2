#include "textflag.h"

// func prefetchHead(frame *byte)
TEXT ·prefetchHead(SB), NOSPLIT, $0-8
	MOVQ frame+0(FP), SI
	PREFETCHT0 -32(SI)
	PREFETCHT0 (SI)
	PREFETCHT0 64(SI)
	RET
