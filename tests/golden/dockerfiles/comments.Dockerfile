# a comment before anything
FROM base
  # an indented comment
RUN make \
# between two pieces \
    # indented, between two pieces
    install # the shell's, not ours
RUN echo '#' \
   #not a piece
   "# quoted"
