package top

// column of a table. The first column is the name. What has no room is left out whole, the least important first.
type column struct {
	title string
	min   int  // cells
	most  int  // cells that it may take where there is room; 0: min
	right bool // aligned
	rank  int  // importance, the smaller the more; of equal ones the left one
}

// cell is one of a row: a text, or what fills as many cells as it is given.
type cell struct {
	text  string
	style Style
	fill  func(cells int) string // nil: text
}

// want is how many cells it would take.
func (c *cell) want() int {
	if c.fill != nil {
		return remembered
	}
	return width(c.text)
}

// layout chooses the columns for a width and gives each its cells, 0 for none. Between two columns is a blank. want is how many cells
// the widest text of each column has.
func layout(columns []column, want []int, width int) []int {
	out := make([]int, len(columns))
	left := width
	for rank := 0; rank <= lastRank(columns); rank++ {
		for i, c := range columns {
			need := c.min
			if i > 0 {
				need++
			}
			if c.rank == rank && need <= left {
				out[i] = c.min
				left -= need
			}
		}
	}
	for i, c := range columns { // what is left goes to those who can use it, from the left
		if out[i] == 0 || c.most == 0 {
			continue
		}
		more := max(0, min(c.most, want[i])-out[i])
		more = min(more, left)
		out[i] += more
		left -= more
	}
	return out
}

func lastRank(columns []column) (last int) {
	for _, c := range columns {
		last = max(last, c.rank)
	}
	return last
}

// draw lays out a table: its head, and a line for each row.
func draw(columns []column, rows [][]cell, cells int) (lines []Line) {
	want := make([]int, len(columns))
	for i, c := range columns {
		want[i] = width(c.title)
		for _, r := range rows {
			want[i] = max(want[i], r[i].want())
		}
	}
	sizes := layout(columns, want, cells)
	titles := make([]cell, len(columns))
	for i, c := range columns {
		titles[i] = cell{text: c.title, style: Head}
	}
	lines = append(lines, line(columns, titles, sizes))
	for _, r := range rows {
		lines = append(lines, line(columns, r, sizes))
	}
	return lines
}

func line(columns []column, row []cell, sizes []int) (out Line) {
	for i, c := range row {
		if sizes[i] == 0 {
			continue
		}
		if i > 0 {
			out = append(out, Span{" ", Plain})
		}
		text := clean(c.text)
		if c.fill != nil {
			text = c.fill(sizes[i])
		}
		out = append(out, Span{pad(text, sizes[i], columns[i].right), c.style})
	}
	return out
}
